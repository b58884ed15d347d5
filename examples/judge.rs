//! Judges your function, clause by clause: `cargo run -p examples --bin judge -- vfio:0000:03:00.0`.

use anyhow::{Context, Error, Result, ensure};
use spec_tests::clause::Registry;
use spec_tests::harness::LIMIT;
use spec_tests::report::Format;
use spec_tests::run::{Options, Setup, run};
use spec_tests::target::Address;

fn main() -> Result<()> {
    let name = std::env::args().nth(1).context("expected a target")?;
    let address: Address = name.parse().map_err(Error::msg)?;
    let setup = Setup::new(address.target(LIMIT, None, false))?;
    let registry = Registry::load()?;
    let report = run(&setup, &registry, &Options::default(), &mut |_| {})?;
    print!("{}", report.write(Format::Human)?);
    ensure!(report.failures() == 0, "it breaks clauses");
    Ok(())
}
