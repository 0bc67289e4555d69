/// Bytes from which values are drawn, and zeros where they end.
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) const fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub(super) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Draws one of `choices`, the first where the bytes have ended.
    pub(super) fn one_of<T: Clone>(&mut self, choices: &[T]) -> T {
        let at = usize::from(self.byte()) % choices.len();
        choices.get(at).expect("one of them").clone()
    }

    pub(super) const fn rest(self) -> &'a [u8] {
        self.0
    }
}
