//! The one dyn-compatible store trait, with boxed futures.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use idemptx_core::key::RecordId;
use idemptx_core::lease::Lease;
use idemptx_core::record::Record;
use idemptx_core::store::{
    Capabilities, Claim, ClaimRequest, Inventory, Page, Query, RecordSnapshot, Settlement, Store,
    StoreError, Watch,
};

use super::safety::{SafetyCheck, SafetyReport};
use super::transactional::Transactional;

/// The boxed future of a store's step.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An object-safe store.
///
/// Implemented for every complete store, so that the choice of a store at run time costs one
/// allocation a step and no forwarding code.
pub(super) trait DynStore: Transactional + fmt::Debug + 'static {
    fn claim<'a>(
        &'a self,
        id: &'a RecordId,
        request: &'a ClaimRequest,
    ) -> BoxFuture<'a, Result<Claim, StoreError>>;
    fn settle<'a>(
        &'a self,
        lease: &'a Lease,
        done: &'a Settlement,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), StoreError>>;
    fn renew<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Lease, StoreError>>;
    fn lookup<'a>(
        &'a self,
        id: &'a RecordId,
    ) -> BoxFuture<'a, Result<Option<RecordSnapshot>, StoreError>>;
    fn recall(&self, id: &RecordId) -> Option<Record>;
    fn watch<'a>(&'a self, id: &'a RecordId) -> BoxFuture<'a, Option<Watch>>;
    fn maintain(&self);
    fn capabilities(&self) -> Capabilities;
    fn list<'a>(&'a self, query: &'a Query) -> BoxFuture<'a, Result<Page, StoreError>>;
    fn check(&self) -> BoxFuture<'_, Result<SafetyReport, StoreError>>;
    fn migrate(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

impl<S: Store + Inventory + SafetyCheck + Transactional> DynStore for S {
    fn claim<'a>(
        &'a self,
        id: &'a RecordId,
        request: &'a ClaimRequest,
    ) -> BoxFuture<'a, Result<Claim, StoreError>> {
        Box::pin(Store::claim(self, id, request))
    }

    fn settle<'a>(
        &'a self,
        lease: &'a Lease,
        done: &'a Settlement,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(Store::settle(self, lease, done))
    }

    fn release<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(Store::release(self, lease))
    }

    fn renew<'a>(&'a self, lease: &'a Lease) -> BoxFuture<'a, Result<Lease, StoreError>> {
        Box::pin(Store::renew(self, lease))
    }

    fn lookup<'a>(
        &'a self,
        id: &'a RecordId,
    ) -> BoxFuture<'a, Result<Option<RecordSnapshot>, StoreError>> {
        Box::pin(Store::lookup(self, id))
    }

    fn recall(&self, id: &RecordId) -> Option<Record> {
        Store::recall(self, id)
    }

    fn watch<'a>(&'a self, id: &'a RecordId) -> BoxFuture<'a, Option<Watch>> {
        Box::pin(Store::watch(self, id))
    }

    fn maintain(&self) {
        Store::maintain(self);
    }

    fn capabilities(&self) -> Capabilities {
        Store::capabilities(self)
    }

    fn list<'a>(&'a self, query: &'a Query) -> BoxFuture<'a, Result<Page, StoreError>> {
        Box::pin(Inventory::list(self, query))
    }

    fn check(&self) -> BoxFuture<'_, Result<SafetyReport, StoreError>> {
        Box::pin(SafetyCheck::check(self))
    }

    fn migrate(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(SafetyCheck::migrate(self))
    }
}
