//! The question: a request as an operator writes it down.

use std::net::{IpAddr, Ipv4Addr};

use http::{HeaderName, HeaderValue, Method};

use crate::table::normalize_host;

/// Fields of one question, as many as a request may have.
const MAX_FIELDS: usize = crate::wire::MAX_FIELDS;

/// A request of which is asked what would become of it.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Question {
    /// The request's method, such as GET.
    pub method: String,
    /// What is asked for: `http://HOST/PATH` or `https://HOST/PATH`, maybe with a query.
    pub url: String,
    /// A field of the request; may be given several times.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    pub headers: Vec<String>,
    /// Where the request comes from: the address that the ingress sees.
    #[arg(long, value_name = "ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub client: IpAddr,
}

/// What is asked is no request.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuestionError {
    /// Not a token.
    #[error("METHOD {0:?} is none: write GET, POST or another method of HTTP")]
    Method(String),
    /// Not of the two forms.
    #[error("URL {0:?} is not of the form http://HOST/PATH or https://HOST/PATH")]
    Url(String),
    /// It has a name or a password.
    #[error("URL {0:?} has a user: pass -H 'Authorization: Basic …' instead")]
    User(String),
    /// What stands for the host is none.
    #[error("URL {0:?} has no host that can be asked for: {1}")]
    Host(String, crate::table::HostError),
    /// A character that no request has.
    #[error("URL {0:?} has a blank, a control character or a letter that has to be escaped as %XX")]
    Character(String),
    /// What follows a number sign stays with the browser.
    #[error("URL {0:?} has a fragment, which no request has: leave out what follows the #")]
    Fragment(String),
    /// Not a name and a value.
    #[error("-H {0:?} is not of the form 'Name: value'")]
    Header(String),
    /// Too much.
    #[error("there are more than {MAX_FIELDS} headers")]
    Headers,
    /// Not what [`Question::path_and_query`] makes.
    #[error("the query is to have method=, url=, client= and maybe header= several times: {0}")]
    Query(&'static str),
}

/// The question, taken apart.
pub(super) struct Asked {
    pub(super) https: bool,
    /// The URL's host in normal form: what a client names in its handshake.
    pub(super) name: String,
    /// The head as HTTP/1.1 has it.
    pub(super) head: String,
}

impl Question {
    /// Makes sure that it can be asked.
    pub fn check(&self) -> Result<(), QuestionError> {
        self.ask().map(drop)
    }

    /// Path and query by which [`super::super::Pages`] is asked; `is_json` says in which form the answer is wanted.
    pub fn path_and_query(&self, is_json: bool) -> String {
        let mut query = form_urlencoded::Serializer::new("/explain?".to_owned());
        query
            .append_pair("method", &self.method)
            .append_pair("url", &self.url)
            .append_pair("client", &self.client.to_string())
            .append_pair("output", if is_json { "json" } else { "text" });
        for header in &self.headers {
            query.append_pair("header", header);
        }
        query.finish()
    }

    /// The opposite; and whether the answer is wanted as JSON.
    pub(super) fn read(query: &str) -> Result<(Self, bool), QuestionError> {
        let (mut method, mut url, mut client, mut is_json) = (None, None, None, false);
        let mut headers = Vec::new();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "method" => method = Some(value.into_owned()),
                "url" => url = Some(value.into_owned()),
                "client" => {
                    client = Some(value.parse().map_err(|_| QuestionError::Query("client is no address"))?);
                }
                "output" => is_json = value == "json",
                "header" => headers.push(value.into_owned()),
                _ => return Err(QuestionError::Query("there is another word")),
            }
        }
        let missing = |what| QuestionError::Query(what);
        let question = Self {
            method: method.ok_or(missing("there is no method"))?,
            url: url.ok_or(missing("there is no url"))?,
            client: client.ok_or(missing("there is no client"))?,
            headers,
        };
        Ok((question, is_json))
    }

    pub(super) fn ask(&self) -> Result<Asked, QuestionError> {
        let url = || self.url.clone();
        Method::from_bytes(self.method.as_bytes()).map_err(|_| QuestionError::Method(self.method.clone()))?;
        let (scheme, rest) = self.url.split_once("://").ok_or_else(|| QuestionError::Url(url()))?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err(QuestionError::Url(url())),
        };
        if rest.contains('#') {
            return Err(QuestionError::Fragment(url()));
        }
        if !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(QuestionError::Character(url()));
        }
        let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(QuestionError::User(url()));
        }
        let name = normalize_host(authority).map_err(|error| QuestionError::Host(url(), error))?;
        if name.is_empty() {
            return Err(QuestionError::Url(url()));
        }
        if self.headers.len() >= MAX_FIELDS {
            return Err(QuestionError::Headers);
        }
        let slash = if target.starts_with('/') { "" } else { "/" };
        let mut fields = String::new();
        let mut has_host = false;
        for header in &self.headers {
            let (name, value) = split(header).ok_or_else(|| QuestionError::Header(header.clone()))?;
            has_host |= name.eq_ignore_ascii_case("host");
            fields.extend([name, ": ", value, "\r\n"]);
        }
        // As with curl: who gives a Host asks for that one, at the address of the URL's.
        let host = if has_host { String::new() } else { format!("host: {authority}\r\n") };
        let head = format!("{} {slash}{target} HTTP/1.1\r\n{host}{fields}\r\n", self.method);
        Ok(Asked { https, name: name.into_owned(), head })
    }
}

fn split(header: &str) -> Option<(&str, &str)> {
    let (name, value) = header.split_once(':')?;
    let (name, value) = (name.trim(), value.trim());
    let is_field = HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok();
    is_field.then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(method: &str, url: &str, headers: &[&str]) -> Question {
        let headers = headers.iter().map(ToString::to_string).collect();
        Question { method: method.into(), url: url.into(), headers, client: "192.0.2.7".parse().unwrap() }
    }

    #[test]
    fn a_question_is_a_request() {
        let asked = question("GET", "HTTPS://Shop.example:8443?q=a&b", &["X-A:  b "]).ask().unwrap();
        assert_eq!((asked.https, asked.name.as_str()), (true, "shop.example"));
        assert_eq!(asked.head, "GET /?q=a&b HTTP/1.1\r\nhost: Shop.example:8443\r\nX-A: b\r\n\r\n");
        let asked = question("PUT", "http://a/x", &["Host: b"]).ask().unwrap();
        assert_eq!(asked.head, "PUT /x HTTP/1.1\r\nHost: b\r\n\r\n");
    }

    #[test]
    fn what_is_none_is_named() {
        for (method, url, header, error) in [
            ("G T", "http://a/", "x: y", "METHOD \"G T\" is none"),
            ("GET\r\nX: y", "http://a/", "x: y", "METHOD"),
            ("GET", "shop.example/x", "x: y", "URL \"shop.example/x\" is not of the form"),
            ("GET", "ftp://a/x", "x: y", "URL \"ftp://a/x\" is not of the form"),
            ("GET", "http:///x", "x: y", "is not of the form"),
            ("GET", "http://a b/", "x: y", "has a blank"),
            ("GET", "http://a/\r\nX: y", "x: y", "has a blank"),
            ("GET", "http://a:b/", "x: y", "has no host that can be asked for"),
            ("GET", "http://u:p@a/", "x: y", "has a user"),
            ("GET", "http://a/#b", "x: y", "has a fragment"),
            ("GET", "http://a/", "xy", "-H \"xy\" is not of the form 'Name: value'"),
            ("GET", "http://a/", "x: y\r\nz: w", "-H"),
        ] {
            let said = question(method, url, &[header]).check().unwrap_err().to_string();
            assert!(said.contains(error), "{said}, not {error}");
        }
        assert_eq!(question("GET", "http://a/", &["a: b"; MAX_FIELDS]).check(), Err(QuestionError::Headers));
    }

    #[test]
    fn it_goes_through_a_query() {
        let asked = question("GET", "http://a/x?y=z&w", &["cookie: a=b; c=d&e", "x: %41"]);
        for is_json in [false, true] {
            let text = asked.path_and_query(is_json);
            let query = text.strip_prefix("/explain?").unwrap();
            assert_eq!(Question::read(query), Ok((asked.clone(), is_json)));
        }
        for (query, what) in [
            ("", "there is no method"),
            ("method=GET&url=x", "there is no client"),
            ("client=x", "client is no address"),
            ("mehtod=GET", "there is another word"),
        ] {
            assert_eq!(Question::read(query), Err(QuestionError::Query(what)), "{query}");
        }
    }
}
