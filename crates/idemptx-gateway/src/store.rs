//! Opens the configured store.

use idemptx::store::AnyStore;
use idemptx::store::near::NearLimits;
use idemptx::store::seal::{Seal, SealKeys};

use crate::config::{SealKeysFrom, Store};
use crate::error::StartError;

/// Opens the store; a server is connected to on first use.
pub(crate) fn open(config: &Store) -> Result<AnyStore, StartError> {
    let mut store = AnyStore::from_url(&config.url).map_err(StartError::Store)?;
    if let Some(seal) = &config.seal {
        let keys = match &seal.keys {
            SealKeysFrom::Text(text) => text.parse(),
            SealKeysFrom::File(path) => SealKeys::from_file(path),
        };
        let keys = keys.map_err(StartError::Seal)?;
        store = store.sealed(Seal::with(keys).accept_unsealed(seal.accept_unsealed));
    }
    if let Some(near) = &config.near {
        store = store.near(NearLimits::bytes(near.bytes_max).hold(near.hold));
    }
    Ok(store)
}
