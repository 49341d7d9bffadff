# One image for worker, beat, Flower and the command line. Runs as an ordinary user.
FROM python:3.13-slim

RUN useradd --create-home --uid 10001 billing
WORKDIR /app

COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY billing_tasks ./billing_tasks
RUN pip install --no-cache-dir --constraint constraints.txt . && mkdir /data && chown billing /data

COPY config ./config
USER billing
VOLUME /data

ENV PYTHONUNBUFFERED=1
CMD ["celery", "-A", "billing_tasks", "worker", "--concurrency", "2", "--without-gossip", "--without-mingle"]
