//! The keywheel program.

#[cfg(feature = "demo")]
mod demo;

#[cfg(feature = "demo")]
#[derive(clap::Parser)]
struct Cli {
    #[command(subcommand)]
    process: demo::Process,
}

#[cfg(feature = "demo")]
fn main() -> anyhow::Result<()> {
    <Cli as clap::Parser>::parse().process.run()
}

#[cfg(not(feature = "demo"))]
fn main() {}
