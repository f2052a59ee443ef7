//! Listening.

use std::{io, net::SocketAddr, sync::Arc};

use edge::{Client, Handler, ReplyBody, ServerLimits};
use hyper::{Request, Response, StatusCode, body::Incoming};

use crate::{
    reply,
    service::{Backend, HostConfig, Service},
};

/// A server that listens and does not yet answer.
pub struct Server(edge::Server);

impl Server {
    /// Binds the address; port 0 picks a free one.
    pub async fn bind(address: SocketAddr, limits: ServerLimits) -> io::Result<Self> {
        edge::Server::bind(address, limits).await.map(Self)
    }

    /// The address it listens on.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.address()
    }

    /// Answers requests until `stop` returns, then finishes the calls that are running, within the
    /// drain timeout. Dropping the future drops all connections.
    pub async fn run(
        self,
        config: HostConfig,
        backend: Arc<dyn Backend>,
        stop: impl Future<Output = ()>,
    ) {
        self.0.run(Arc::new(Service::new(config, backend)), stop).await;
    }
}

impl Handler for Service {
    type Body = ReplyBody;

    async fn answer(
        &self,
        request: Request<Incoming>,
        client: &Arc<Client>,
    ) -> Response<ReplyBody> {
        self.answer(request, client).await
    }

    fn refuse_ambiguous(&self) -> Response<ReplyBody> {
        let why = "Request has both content-length and transfer-encoding.";
        reply::text(StatusCode::BAD_REQUEST, why)
    }
}
