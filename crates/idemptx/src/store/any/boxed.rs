//! A store of any kind as a part of another one.

use std::future::Future;
use std::pin::Pin;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, Inventory, Page, Query, RecordSnapshot, Settlement, Store,
    StoreError, Watch,
};

use super::AnyStore;
use crate::store::safety::{SafetyCheck, SafetyReport};

/// An [`AnyStore`] beneath another one.
///
/// Its futures are boxed and their types forgotten: a type cannot contain itself.
#[derive(Debug)]
pub struct BoxedStore(AnyStore);

impl BoxedStore {
    pub(super) const fn new(store: AnyStore) -> Self {
        Self(store)
    }

    /// The store.
    #[must_use]
    pub const fn get(&self) -> &AnyStore {
        &self.0
    }

    /// The store.
    #[must_use]
    pub fn into_inner(self) -> AnyStore {
        self.0
    }
}

type Step<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The compiler looks into what an `async fn` awaits, but not past these.
impl AnyStore {
    fn claim_step<'a>(
        &'a self,
        id: &'a RecordId,
        request: &'a ClaimRequest,
    ) -> Step<'a, Result<Claim, StoreError>> {
        Box::pin(self.claim(id, request))
    }

    fn settle_step<'a>(
        &'a self,
        lease: &'a Lease,
        done: &'a Settlement,
    ) -> Step<'a, Result<(), StoreError>> {
        Box::pin(self.settle(lease, done))
    }

    fn release_step<'a>(&'a self, lease: &'a Lease) -> Step<'a, Result<(), StoreError>> {
        Box::pin(self.release(lease))
    }

    fn renew_step<'a>(&'a self, lease: &'a Lease) -> Step<'a, Result<Lease, StoreError>> {
        Box::pin(self.renew(lease))
    }

    fn lookup_step<'a>(
        &'a self,
        id: &'a RecordId,
    ) -> Step<'a, Result<Option<RecordSnapshot>, StoreError>> {
        Box::pin(self.lookup(id))
    }

    fn watch_step<'a>(&'a self, id: &'a RecordId) -> Step<'a, Option<Watch>> {
        Box::pin(self.watch(id))
    }

    fn list_step<'a>(&'a self, query: &'a Query) -> Step<'a, Result<Page, StoreError>> {
        Box::pin(self.list(query))
    }

    fn check_step(&self) -> Step<'_, Result<SafetyReport, StoreError>> {
        Box::pin(SafetyCheck::check(self))
    }
}

impl Store for BoxedStore {
    async fn claim(&self, id: &RecordId, request: &ClaimRequest) -> Result<Claim, StoreError> {
        self.0.claim_step(id, request).await
    }

    async fn settle(&self, lease: &Lease, done: &Settlement) -> Result<(), StoreError> {
        self.0.settle_step(lease, done).await
    }

    async fn release(&self, lease: &Lease) -> Result<(), StoreError> {
        self.0.release_step(lease).await
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, StoreError> {
        self.0.renew_step(lease).await
    }

    async fn lookup(&self, id: &RecordId) -> Result<Option<RecordSnapshot>, StoreError> {
        self.0.lookup_step(id).await
    }

    async fn watch(&self, id: &RecordId) -> Option<Watch> {
        self.0.watch_step(id).await
    }

    fn maintain(&self) {
        self.0.maintain();
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
}

impl Inventory for BoxedStore {
    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        self.0.list_step(query).await
    }
}

impl SafetyCheck for BoxedStore {
    async fn check(&self) -> Result<SafetyReport, StoreError> {
        self.0.check_step().await
    }
}
