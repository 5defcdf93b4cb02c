FROM scratch
ADD root.tar /
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="deadlight-scanner" \
      org.opencontainers.image.description="Finds open ports from outside, has them closed and proves it" \
      org.opencontainers.image.licenses="Apache-2.0 OR MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
# glibc would keep an arena of memory for each thread.
ENV PATH=/usr/bin MALLOC_ARENA_MAX=1
# The program has CAP_NET_RAW by its file.
USER 65532:65532
WORKDIR /var/lib/deadlight-scanner
VOLUME /var/lib/deadlight-scanner
# Sweeps come when they are due.
HEALTHCHECK --interval=1m --timeout=30s --start-period=1h CMD ["/usr/bin/deadlight-scanner", "status", "--health", "--config", "/etc/deadlight-scanner/scanner.toml"]
ENTRYPOINT ["/usr/bin/deadlight-scanner"]
CMD ["run", "--config", "/etc/deadlight-scanner/scanner.toml"]
