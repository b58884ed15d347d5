#!/bin/busybox sh
# The guest's only process of its own: inserts the modules, runs the test's script, powers off.
# The last marker is printed only when every command of the script has succeeded.
export PATH=/bin:/sbin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
# The lines to and from the host: nothing in them is for a terminal to interpret.
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
fact kernel "$(uname -r)"
inserted=yes
[ -f /modules.order ] && while read -r module; do
    insmod "$module" || inserted="failed at $module"
done < /modules.order
fact modules "$inserted"
if [ "$inserted" = yes ] && sh -ex /test.sh; then
    fact last reached
fi
poweroff -f
