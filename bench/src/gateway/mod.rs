//! The cost of the gateway, compared with plain proxies in front of the same upstream.

pub(crate) mod bare;
pub(crate) mod connections;
pub(crate) mod half_load;
mod proxy;
pub(crate) mod rates;
pub(crate) mod upstream;

use crate::Measured;
use crate::redis_server::RedisServer;

use self::proxy::{Kind, Proxy};
use self::upstream::Upstream;

/// The upstream and the Redis server that all proxies share.
struct Backends {
    upstream: Upstream,
    redis: RedisServer,
}

impl Backends {
    fn start() -> Measured<Self> {
        Ok(Self { upstream: Upstream::start()?, redis: RedisServer::start()? })
    }

    /// A proxy in front of it that remembers nothing.
    fn proxy(&self, kind: Kind) -> Measured<Proxy> {
        self.redis.flush()?;
        Proxy::start(kind, self.upstream.address, &self.redis.url())
    }
}
