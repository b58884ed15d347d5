//! The part that proves the static build: on both kernels it runs where there is no library.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Options;
use crate::guest::Guest;
use crate::process;
use crate::testbed;
use crate::workspace::Workspace;

const AT_MOST: Duration = Duration::from_secs(120);
/// It runs while the host holds the guest's line: the handshake that other proofs rest on.
const SCRIPT: &str = "\
fact version \"$(tidemark --version)\"
fact answer \"$(ask how many)\"
";

/// Runs `tidemark --version` in a guest and compares it with the host's.
pub fn run(workspace: &Workspace, _options: &Options) -> Result<String> {
    let bed = testbed::ensure(workspace)?;
    let tidemark = workspace.tidemark_static()?;
    let version = process::capture(std::process::Command::new(&tidemark).arg("--version"))?;
    for platform in bed.vfio_user_platforms() {
        let dir = bed.run_dir("static")?;
        let mut guest = Guest::new(&bed, platform, SCRIPT);
        let vm = guest.file("/bin/tidemark", &tidemark).start(&dir)?;
        vm.fact("version", AT_MOST)?;
        let asked = vm.line(AT_MOST)?;
        ensure!(asked == "how many", "the guest asked {asked:?}");
        vm.qmp().stop()?;
        let memory = vm.ram()?.metadata()?.len();
        vm.qmp().cont()?;
        vm.send(&memory.to_string())?;
        let run = vm.finish(AT_MOST)?;
        run.serial.expect("version", version.trim_end())?;
        run.serial.expect("answer", "536870912")?;
    }
    Ok(format!("{} on both kernels", version.trim_end()))
}
