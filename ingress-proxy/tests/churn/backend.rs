//! An endpoint: HTTP/1.1 and HTTP/2 in cleartext, an echo of bodies as they come, and an echo behind an upgrade.

use std::convert::Infallible;

use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// Where every endpoint listens.
pub(crate) const PORT: u16 = 9_000;

/// Serves at that address until the runtime ends.
pub(crate) async fn start(address: &str) {
    let listener = TcpListener::bind((address, PORT)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let io = TokioIo::new(stream);
                let _ = builder.serve_connection_with_upgrades(io, service_fn(answer)).await;
            });
        }
    });
}

async fn answer(
    mut request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, hyper::Error>>, Infallible> {
    let whole =
        |text: &'static str| Full::new(Bytes::from_static(text.as_bytes())).map_err(|never| match never {});
    if request.headers().contains_key("upgrade") {
        tokio::spawn(async move {
            let mut stream = TokioIo::new(hyper::upgrade::on(&mut request).await.unwrap());
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                stream.write_all(&buffer[..count]).await.unwrap();
            }
        });
        let response =
            Response::builder().status(101).header("connection", "upgrade").header("upgrade", "websocket");
        return Ok(response.body(whole("").boxed()).unwrap());
    }
    if request.uri().path().starts_with("/grpc") {
        return Ok(Response::new(request.into_body().boxed()));
    }
    Ok(Response::new(whole("served").boxed()))
}
