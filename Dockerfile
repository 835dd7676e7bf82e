# The worker, and every other command: docker run … cdc status
FROM python:3.11-slim

WORKDIR /srv/cdc
COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt && useradd --system --no-create-home cdc

COPY pyproject.toml setup.py README.md ./
COPY cdc ./cdc
COPY sql ./sql
RUN pip install --no-cache-dir --no-deps .

USER cdc
ENV PYTHONUNBUFFERED=1
EXPOSE 9187
ENTRYPOINT ["python", "-m", "cdc"]
CMD ["run"]
