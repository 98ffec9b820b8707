# The servers, the worker and the command `medicane`, in the versions of requirements.lock.
FROM python:3.11.13-slim-bookworm
RUN useradd --create-home --home-dir /var/lib/medicane medicane
WORKDIR /opt/medicane
COPY requirements.lock ./
RUN pip install --no-cache-dir --no-deps --require-hashes --requirement requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation --editable .
USER medicane
WORKDIR /var/lib/medicane
CMD ["medicane", "--help"]
