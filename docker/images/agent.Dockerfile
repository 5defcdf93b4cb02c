FROM scratch
ADD root.tar /
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="deadlight-agent" \
      org.opencontainers.image.description="Closes ports of a Docker node that nobody allowed" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# The node's /proc and /run are mounted there. glibc would keep an arena of memory for each thread.
ENV PATH=/usr/sbin:/usr/bin DEADLIGHT_HOST=/host XTABLES_LOCKFILE=/host/var/run/xtables.lock MALLOC_ARENA_MAX=1
# Root, because Docker gives the capabilities of `cap_add` to nobody else.
USER 0:0
# What shall be closed is closed.
HEALTHCHECK --interval=1m --timeout=30s --retries=5 CMD ["/usr/bin/deadlight-agent", "status"]
ENTRYPOINT ["/usr/bin/deadlight-agent"]
CMD ["run"]
