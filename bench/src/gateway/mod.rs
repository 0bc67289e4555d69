//! The cost of the gateway, compared with plain proxies in front of the same upstream.

pub(crate) mod bare;
pub(crate) mod connections;
pub(crate) mod half_load;
mod proxy;
pub(crate) mod rates;
pub(crate) mod upstream;

use crate::Measured;
use crate::instructions::Counter;
use crate::redis_server::RedisServer;

pub(crate) use self::proxy::{Kind, Proxy, idemptx};
pub(crate) use self::upstream::Upstream;

/// The upstream and the Redis server that all proxies share.
pub(crate) struct Backends {
    upstream: Upstream,
    redis: RedisServer,
}

impl Backends {
    pub(crate) fn start() -> Measured<Self> {
        Ok(Self { upstream: Upstream::start()?, redis: RedisServer::start()? })
    }

    /// A proxy in front of it that remembers nothing.
    fn proxy(&self, kind: Kind) -> Measured<Proxy> {
        self.redis.flush()?;
        Proxy::start(kind, self.upstream.address, &self.redis.url(), None)
    }

    /// The same, with its instructions counted.
    pub(crate) fn counted(&self, kind: Kind, counter: &Counter) -> Measured<Proxy> {
        self.redis.flush()?;
        Proxy::start(kind, self.upstream.address, &self.redis.url(), Some(counter))
    }
}
