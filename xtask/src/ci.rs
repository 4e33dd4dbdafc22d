//! All that must hold before a change lands, cheapest first.

use anyhow::Result;

use crate::{
    command::{self, cargo},
    setup, test,
};

/// Runs every check; the first that fails ends it.
pub(crate) fn run() -> Result<()> {
    command::run(&mut cargo(["fmt", "--all", "--check"]))?;
    setup::run()?;
    setup::deny()?;
    command::run(&mut cargo(["deny", "check", "bans", "licenses", "sources"]))?;
    command::run(&mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    command::run(
        cargo(["doc", "--workspace", "--no-deps", "--document-private-items"])
            // What is private is documented too, so what is public may point at it.
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links"),
    )?;
    test::run(None, "", false)
}
