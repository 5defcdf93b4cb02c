//! Bugs that are put in on purpose: an oracle that finds none of them would find no other.

/// A bug in one part of the world; `World::planted` has it from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Planted {
    /// A sweep hears no open port but those that a scanner needs.
    BlindSweep,
    /// A proof's probes are refused by an open port.
    FalseProof,
    /// A scanner keeps contradictions to itself.
    Discreet,
    /// An agent takes a replayed order for a new one.
    Forgetful,
    /// A kernel shuts ssh with everything else.
    Overzealous,
}

/// Each with what the oracle has to say of it.
pub(crate) const PLANTED: [(Planted, &str); 5] = [
    (Planted::BlindSweep, "does not say so"),
    (Planted::FalseProof, "closed, and it is open"),
    (Planted::Discreet, "does not tell Contradiction"),
    (Planted::Forgetful, "an old order changed"),
    (Planted::Overzealous, "the protected 22/tcp is shut"),
];
