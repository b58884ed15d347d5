//! A mediator inside the guest, before functions that VFIO gave it: QEMU's own virtio-blk, which
//! works and cannot be moved, and two of ours, between which a busy disk is moved.
//!
//! The one who drives the mediator's front is `tidemark journal` by itself: a guest in the guest
//! would prove no more, and take its time.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{AT_MOST, Proof, spread};
use crate::guest::{Guest, VFIO_MODULES};
use crate::testbed::Platform;

const MOVES: usize = 20;
/// Where QEMU's own disk is, away from those of ours.
const OWN: &str = "0000:00:10.0";

/// Servers say on standard error that they listen: the pipe is read once and stays open.
const SCRIPT: &str = "\
for device in /sys/bus/pci/devices/*; do
    [ \"$(cat $device/vendor):$(cat $device/device)\" = 0x1af4:0x1042 ] || continue
    address=$(basename $device)
    echo vfio-pci > $device/driver_override
    [ ! -e $device/driver ] || echo $address > $device/driver/unbind
    echo $address > /sys/bus/pci/drivers_probe
    [ $address = OWN ] || ours=\"$ours $address\"
done
set -- $ours
fact ours \"$*\"
mkfifo /tmp/said /tmp/stop
exec 4<>/tmp/said 5<>/tmp/stop
mediate() {
    tidemark mediate --front vfio-user:/tmp/front --back vfio:$1 --control /tmp/control \
        > /tmp/mediated 2>&4 &
    mediator=$!
    # A kernel whose landlock is older than what is asked for has this said first.
    while read -r line <&4; do
        case \"$line\" in
            'tidemark: listening on /tmp/front') return ;;
            'tidemark: sandbox: '*) echo \"$line\" ;;
            *) echo \"$line\"; false ;;
        esac
    done
}
work() {
    tidemark journal --target vfio-user:/tmp/front --depth 32 --span 8M --progress 500 \
        --control /tmp/stop --json > /tmp/report 2>&4 &
    journal=$!
    read -r line <&4
}
done_working() {
    echo stop >&5
    wait $journal
    wait $mediator
    fact journal$1 \"$(tail -n 1 /tmp/report)\"
    fact mediated$1 \"$(tail -n 1 /tmp/mediated)\"
    while read -r -t 1 line <&4; do :; done
}

mediate OWN
work
code=0
tidemark mediate move --control /tmp/control --to vfio:$1 2> /tmp/refused || code=$?
fact code $code
fact refused \"$(cat /tmp/refused)\"
done_working 0

mediate $1
work
number=0
while [ $number -lt MOVES ]; do
    number=$((number + 1))
    [ $((number % 2)) = 1 ] && to=$2 || to=$1
    tidemark mediate move --control /tmp/control --to vfio:$to --json > /tmp/moved
    fact move$number \"$(cat /tmp/moved)\"
    read -r line <&4
done
done_working 1
dmesg | grep -i -e DMAR.*fault -e vfio.*fail > /tmp/complaints || cat /tmp/complaints
fact complaints \"$(cat /tmp/complaints)\"
";

impl Proof<'_> {
    /// Both kinds of functions in one guest.
    pub(super) fn inside(&self, platform: Platform<'_>) -> Result<Value> {
        let bed = self.bed(platform, "inside")?;
        let own = bed.dir.join("own.img");
        File::create(&own)?.set_len(32 << 20)?;
        let servers = [bed.serve("a", "a", &[])?, bed.serve("b", "b", &[])?];

        let script = SCRIPT
            .replace("OWN", OWN)
            .replace("MOVES", &MOVES.to_string());
        let mut guest = Guest::new(self.bed, platform, &script);
        guest.iommu().cpus(2).modules(VFIO_MODULES)?;
        guest.file("/bin/tidemark", self.in_guest);
        for (server, name) in servers.iter().zip(["a", "b"]) {
            guest.vfio_user(&bed.socket(name)).watch(server.process())?;
        }
        attach(&mut guest, &own);
        let run = guest.start(&bed.dir)?.finish(AT_MOST)?;
        let served: Vec<Value> = servers
            .into_iter()
            .map(|server| server.stop())
            .collect::<Result<_>>()?;

        let fact = |name: &str| run.serial.fact(name);
        let parse = |name: &str| -> Result<Value> {
            let text = fact(name)?;
            serde_json::from_str(text).with_context(|| format!("{name} is {text:?}"))
        };
        let (first, second) = (parse("journal0")?, parse("journal1")?);
        for journal in [&first, &second] {
            ensure!(
                journal["good"] == true && journal["max_in_flight"] == 32,
                "a journal found {journal}"
            );
        }
        run.serial.expect("code", "1")?;
        let refused = fact("refused")?;
        for lack in ["SUSPEND", "queue state", "dirty pages tracker"] {
            ensure!(
                refused.contains(OWN) && refused.contains(lack),
                "the refusal does not name {lack}: {refused}"
            );
        }
        let mediated = parse("mediated1")?;
        ensure!(
            mediated["moves"] == MOVES && mediated["failed_moves"] == 0,
            "the mediator reports {mediated}"
        );
        ensure!(
            served.iter().all(|one| one["errors"] == 0)
                && served.iter().all(|one| one["writes"].as_u64() > Some(0)),
            "the servers report {served:?}"
        );
        run.serial.expect("complaints", "")?;
        let reports: Vec<Value> = (1..=MOVES)
            .map(|number| parse(&format!("move{number}")))
            .collect::<Result<_>>()?;
        let figures = json!({
            "platform": platform.name(),
            "seconds": run.seconds,
            "refused": refused,
            "through_qemus_disk": first["requests"],
            "moves": MOVES,
            "downtime_ms": spread(&reports, "downtime_ms"),
            "journal": second,
        });
        println!("{figures}");
        bed.remove()?;
        Ok(figures)
    }
}

/// QEMU's own disk, which an IOMMU translates for.
fn attach(guest: &mut Guest<'_>, disk: &Path) {
    let drive = format!("if=none,id=own,format=raw,file={}", disk.display());
    let device = "virtio-blk-pci,drive=own,disable-legacy=on,iommu_platform=on,addr=0x10";
    guest.arguments(["-drive", &drive, "-device", device]);
}
