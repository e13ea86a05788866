# docker build -t panda .
# docker run --rm --gpus all --shm-size=8g -v "$PWD":/work panda train data=panda data.root=/work/panda
FROM python:3.12-slim
COPY pyproject.toml requirements.lock README.md LICENSE /src/
COPY container /src/container
COPY conf /src/conf
COPY panda /src/panda
RUN sh /src/container/install.sh
WORKDIR /work
ENTRYPOINT ["panda"]
CMD ["--help"]
