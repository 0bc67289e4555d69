//! Opens the configured store.

use idemptx::store::AnyStore;
use idemptx::store::near::NearLimits;
#[cfg(feature = "seal")]
use idemptx::store::seal::{Seal, SealKeys};

use crate::config::Store;
use crate::error::StartError;

/// Opens the store; a server is connected to on first use.
pub(crate) fn open(config: &Store) -> Result<AnyStore, StartError> {
    let mut store = AnyStore::from_url(&config.full_url()).map_err(StartError::Store)?;
    #[cfg(feature = "seal")]
    if let Some(seal) = &config.seal {
        let keys = match &seal.file {
            Some(path) => SealKeys::from_file(path),
            None => seal.keys.as_deref().unwrap_or_default().parse(),
        };
        let keys = keys.map_err(StartError::Seal)?;
        store = store.sealed(Seal::with(keys).accept_unsealed(seal.accept_unsealed));
    }
    if config.near_bytes > 0 {
        store = store.near(NearLimits::bytes(config.near_bytes).hold(config.near_hold));
    }
    Ok(store)
}

#[cfg(all(test, not(any(feature = "postgres", feature = "redis", feature = "sqlite"))))]
mod tests {
    use std::error::Error;

    use super::*;

    #[test]
    fn a_store_is_refused_where_it_is_not_built_in() {
        for (url, feature) in [
            ("postgres://localhost/shop", "postgres"),
            ("rediss://localhost", "redis"),
            ("sqlite:keys.db", "sqlite"),
        ] {
            let refused = open(&Store::new(url.to_owned())).unwrap_err();
            let expected = format!("this program was built without the feature `{feature}`");
            let said = refused.source().unwrap().to_string();
            assert!(said.starts_with(&expected), "{said}");
        }
    }
}
