//! What operators see of a running ingress: pages for the admin server, which belongs to whoever runs the role.
//!
//! - `/explain`: what would become of a request, and why ([`Question`]; `weir explain http` asks it);
//! - `/status`: routes, certificates, endpoints, rates and problems, for browsers; `/status.json` is what it shows.
//!
//! All pages read what is live through the code that serves requests, and change nothing: no limit counts a question, no
//! endpoint's turn is taken, no password is tried. A page costs what it shows, and requests nothing.

mod explain;
mod status;

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use http::{Response, StatusCode, header};

pub use explain::{Question, QuestionError};

use crate::proxy::Proxy;
use crate::tls::Certificates;
use crate::watch::Problems;

/// The pages of one role.
#[derive(Clone, Default)]
pub struct Pages(Arc<ArcSwapOption<View>>);

/// What there is to look at.
pub(crate) struct View {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) certificates: Arc<ArcSwap<Certificates>>,
    pub(crate) problems: Problems,
}

impl Pages {
    /// The paths there are, for who asks for another.
    pub const PATHS: &str = "/explain, /status, /status.json";

    /// The page at a path, if there is one. `query` is what follows the question mark.
    pub fn answer(&self, path: &str, query: &str) -> Option<Response<String>> {
        let page: fn(&View, &str) -> Response<String> = match path {
            "/explain" => explain::page,
            "/status" => status::html,
            "/status.css" => status::css,
            "/status.js" => status::js,
            "/status.json" => status::page,
            _ => return None,
        };
        Some(match self.0.load().as_deref() {
            Some(view) => page(view, query),
            None => {
                text(StatusCode::SERVICE_UNAVAILABLE, "the ingress does not serve: it starts, or it ends\n")
            }
        })
    }

    /// Shows this from now on, until the result is dropped.
    #[must_use]
    pub(crate) fn show(&self, view: View) -> Shown {
        self.0.store(Some(Arc::new(view)));
        Shown(self.clone())
    }
}

/// Something is being shown.
pub(crate) struct Shown(Pages);

impl Drop for Shown {
    fn drop(&mut self) {
        self.0.0.store(None);
    }
}

fn text(status: StatusCode, text: impl Into<String>) -> Response<String> {
    page(status, "text/plain; charset=utf-8", text.into())
}

fn json(value: &impl serde::Serialize) -> Response<String> {
    match serde_json::to_string(value) {
        Ok(mut body) => {
            body.push('\n');
            page(StatusCode::OK, "application/json", body)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// What a browser may do with a page: read what comes from the same place, run the one script, and nothing else.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Pages show names that others chose: a browser is to take nothing on them for anything but what it is said to be.
fn page(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY)
        .header(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
        .header(header::REFERRER_POLICY, "no-referrer")
        .header(header::CACHE_CONTROL, "no-store")
        .body(body)
        .expect("a status and valid fields make a response")
}
