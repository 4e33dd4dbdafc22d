//! `weir explain`: what would happen to a packet, from the kernel's maps, or to a request, from a running ingress.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand, ValueEnum, error::Error};
use http::{Request, StatusCode, header::HOST};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use weir_dataplane::cli::{self, ExplainArgs};
use weir_ingress::Question;

/// Where the ingress that `weir up` starts has its admin server, on loopback; ingress-nginx's port.
pub(crate) const INGRESS_PORT: u16 = 10254;
/// How long an ingress may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Flags {
    // Before the subcommand, which is taken out of what was parsed.
    #[command(flatten)]
    packet: Packet,
    #[command(subcommand)]
    what: Option<What>,
}

/// What there is without a subcommand. clap's own `Option` cannot tell whether a struct with another one in it is there.
struct Packet(Option<ExplainArgs>);

impl FromArgMatches for Packet {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let is_there = matches.subcommand_name().is_none();
        is_there.then(|| ExplainArgs::from_arg_matches(matches)).transpose().map(Self)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Packet {
    fn augment_args(command: Command) -> Command {
        ExplainArgs::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        ExplainArgs::augment_args_for_update(command)
    }
}

#[derive(Subcommand)]
enum What {
    /// Say what would become of a request: which rule wins, what its policies say, and where it would go. A running
    /// ingress is asked, in which this changes nothing.
    Http {
        #[command(flatten)]
        question: Question,
        /// The ingress's --metrics-address.
        #[arg(long, value_name = "ADDRESS:PORT", default_value_t = (Ipv4Addr::LOCALHOST, INGRESS_PORT).into())]
        admin: SocketAddr,
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Lines.
    #[default]
    Text,
    /// One JSON document.
    Json,
}

pub(crate) fn main(flags: Flags) -> Result<()> {
    let text = match (flags.what, flags.packet.0) {
        (Some(What::Http { question, admin, output }), _) => {
            question.check()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(ask(admin, &question.path_and_query(output == Output::Json)))?
        }
        (None, Some(packet)) => cli::explain(&packet)?,
        (None, None) => bail!("say what is to be explained: PROTOCOL SOURCE DESTINATION, or http METHOD URL"),
    };
    print!("{text}");
    Ok(())
}

/// Asks a role's admin server for a page.
async fn ask(admin: SocketAddr, path_and_query: &str) -> Result<String> {
    let remedy = || {
        format!(
            "no ingress answers at {admin}: start `weir ingress` with --metrics-address, or give the right --admin"
        )
    };
    let answer = timeout(DEADLINE, get(admin, path_and_query)).await.with_context(remedy)?;
    let (status, text) = answer.with_context(remedy)?;
    match status {
        StatusCode::OK => Ok(text),
        StatusCode::NOT_FOUND => {
            bail!("what answers at {admin} is no ingress of this version: {}", text.trim())
        }
        _ => bail!("{}", text.trim()),
    }
}

async fn get(admin: SocketAddr, path_and_query: &str) -> Result<(StatusCode, String)> {
    let stream = TcpStream::connect(admin).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::get(path_and_query).header(HOST, admin.to_string()).body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    connection.abort();
    Ok((status, String::from_utf8(body.into())?))
}
