#!/bin/sh
# Writes the archive of the image of all containers: busybox, socat and one page, taken from the node's own root tree.
set -eu
tree=/tmp/image
mkdir -p $tree/bin $tree/www
for applet in cat httpd sh sleep; do ln -s busybox $tree/bin/$applet; done
echo hello >$tree/www/index.html
cp /bin/busybox $tree/bin/
# shellcheck disable=SC2046  # a list of files
cp --parents --dereference /usr/bin/socat $(ldd /usr/bin/socat | grep -o '/[^ ]*') $tree
tar -C $tree -c .
rm -r $tree
