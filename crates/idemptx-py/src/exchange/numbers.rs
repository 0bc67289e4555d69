//! The numbers of actions and answers, for Python.

/// `Exchange.action`.
pub(crate) mod action {
    pub(crate) const READ_BODY: i32 = 0;
    pub(crate) const STORE: i32 = 1;
    pub(crate) const WAIT: i32 = 2;
    pub(crate) const PROBE: i32 = 3;
    pub(crate) const EXECUTE: i32 = 4;
    pub(crate) const ANSWER: i32 = 5;
    pub(crate) const ALL: [(&str, i32); 6] = [
        ("READ_BODY", READ_BODY),
        ("STORE", STORE),
        ("WAIT", WAIT),
        ("PROBE", PROBE),
        ("EXECUTE", EXECUTE),
        ("ANSWER", ANSWER),
    ];
}

/// `Exchange.answer`.
pub(crate) mod answer {
    pub(crate) const PASS: i32 = 0;
    pub(crate) const REPLAY: i32 = 1;
    pub(crate) const OWN: i32 = 2;
    pub(crate) const REFUSE: i32 = 3;
    pub(crate) const ALL: [(&str, i32); 4] =
        [("PASS", PASS), ("REPLAY", REPLAY), ("OWN", OWN), ("REFUSE", REFUSE)];
}
