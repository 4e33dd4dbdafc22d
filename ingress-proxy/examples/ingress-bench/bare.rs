//! pingora as its documentation shows it: what Weir adds is measured against this.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use pingora::{
    listeners::tls::TlsSettings,
    proxy::{ProxyHttp, Session, http_proxy_service},
    server::{
        Server,
        configuration::{Opt, ServerConf},
    },
    upstreams::peer::HttpPeer,
};

/// The word that makes this executable the proxy: `bare HTTP HTTPS BACKEND CHAIN KEY`.
pub(crate) const WORD: &str = "bare";

/// Connections to the backend that are kept: with fewer than are in use, it would connect again and again.
const KEPT: usize = 1_024;

struct Bare(SocketAddr);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

/// The proxy's whole life: until it is killed.
pub(crate) fn main(words: &[String]) -> Result<()> {
    let [http, https, backend, chain, key] = words else { bail!("{WORD} HTTP HTTPS BACKEND CHAIN KEY") };
    let conf = ServerConf { threads: 1, upstream_keepalive_pool_size: KEPT, ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(Opt::default(), conf);
    server.bootstrap();
    let mut service = http_proxy_service(&server.configuration, Bare(backend.parse()?));
    service.add_tcp(http);
    let mut tls = TlsSettings::intermediate(chain, key).context("reading the certificate")?;
    tls.enable_h2();
    service.add_tls_with_settings(https, None, tls);
    server.add_service(service);
    server.run_forever()
}
