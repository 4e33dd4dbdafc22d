//! `weir image import|list|remove`: images without a registry.

use std::{io::Write, path::PathBuf};

use super::{Error, Result, Store};

/// Imports, lists and removes container images.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Where this node keeps its data.
    #[arg(long, global = true, default_value = "/var/lib/weir")]
    pub data_dir: PathBuf,
}

/// The subcommands of `weir image`.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Imports the images of an OCI archive or of a `docker save` archive.
    Import {
        /// The archive, a tar file.
        file: PathBuf,
        /// What the image is called here; needed if the archive does not name it.
        #[arg(long)]
        name: Option<String>,
    },
    /// Lists the images on this machine.
    List,
    /// Removes an image by its name or id.
    Remove {
        /// The name or id.
        reference: String,
    },
}

impl Args {
    /// Runs the command and writes what it has to say to `out`.
    pub fn run(&self, out: &mut impl Write) -> Result<()> {
        let store = Store::new(&self.data_dir);
        let written = match &self.command {
            Command::Import { file, name } => {
                let names = store.import(file, name.as_deref())?;
                names.iter().try_for_each(|name| writeln!(out, "{name}"))
            }
            Command::List => list(&store, out)?,
            Command::Remove { reference } => {
                store.remove(reference)?;
                writeln!(out, "{reference} removed")
            }
        };
        written.map_err(Error::io("write to", "stdout"))
    }
}

fn list(store: &Store, out: &mut impl Write) -> Result<std::io::Result<()>> {
    let mut rows = vec![["REFERENCE".to_owned(), "IMAGE ID".to_owned(), "SIZE".to_owned()]];
    for image in store.list()? {
        let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
        let size = format!("{:.1} MB", image.size_bytes as f64 / 1e6);
        rows.extend(image.references.iter().map(|name| [name.clone(), id.clone(), size.clone()]));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (first, second) = (width(0), width(1));
    Ok(rows.iter().try_for_each(|[name, id, size]| writeln!(out, "{name:first$}  {id:second$}  {size}")))
}
