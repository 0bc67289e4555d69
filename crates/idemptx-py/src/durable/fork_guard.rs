//! Guards values that a forked child must not touch.

/// A value of the process that made it.
///
/// A child made by `fork` has none of the threads that share it, and inherits locks as they were at
/// that moment: it neither uses nor drops the value.
pub(super) struct ForkGuard<T> {
    value: Option<T>,
    process: u32,
}

impl<T> ForkGuard<T> {
    pub(super) fn new(value: T) -> Self {
        Self { value: Some(value), process: std::process::id() }
    }

    /// The value; `None` in another process than its own.
    pub(super) fn get(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| self.is_here())
    }

    fn is_here(&self) -> bool {
        self.process == std::process::id()
    }
}

impl<T> Drop for ForkGuard<T> {
    fn drop(&mut self) {
        if !self.is_here() {
            #[allow(
                clippy::mem_forget,
                reason = "its parts may wait for threads that are not here"
            )]
            std::mem::forget(self.value.take());
        }
    }
}
