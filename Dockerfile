# The worker, and every other command: docker run … cdc status
FROM python:3.11 AS build

# This image has a C compiler, for the compiled core; the one below has not.
WORKDIR /src
COPY pyproject.toml setup.py README.md ./
COPY cdc ./cdc
COPY sql ./sql
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim

WORKDIR /srv/cdc
COPY requirements.txt ./
RUN pip install --no-cache-dir --requirement requirements.txt && useradd --system --no-create-home cdc

COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl && rm -r /wheels

USER cdc
ENV PYTHONUNBUFFERED=1
EXPOSE 9187
ENTRYPOINT ["python", "-m", "cdc"]
CMD ["run"]
