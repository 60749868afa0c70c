//! A model of the protocol that runs the protocol's own decisions.
//!
//! The functions of `src/protocol` are not copied but included: which participant prepares, what an
//! answer means, what a state allows, what a sweep may conclude is what the extension does. What
//! the model adds is their surroundings: the order in which `src/xact` and `src/resolver` call
//! them, PostgreSQL on the participants, the network, and everything that goes wrong. Of all
//! possible orders of steps every one is tried.
//!
//! * [`world`]: the state;
//! * [`setting`]: what a run is about; [`rules`]: what can be left out of it;
//! * [`session`] with [`gxid`], [`resolver`] with [`sweep`], [`shard`]: who does what;
//! * [`steps`]: all steps, and the faults among them; [`events`]: what happens to whole servers;
//! * [`properties`]: what has to hold;
//! * [`check`]: runs the checker.

pub mod check;
pub mod events;
pub mod gxid;
pub mod properties;
pub mod resolver;
pub mod rules;
pub mod session;
pub mod setting;
pub mod shard;
pub mod steps;
pub mod sweep;
pub mod world;

// The modules of the extension call their room `crate::protocol`.
#[path = "../../src"]
#[cfg_attr(test, allow(missing_docs, reason = "unit tests"))]
mod source {
    pub mod protocol;
}
pub use source::protocol;

use crate::setting::Setting;
use crate::world::{Host, World};

/// Which coordinator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Side {
    /// The one whose transaction it is.
    Original,
    /// Its physical copy.
    Copy,
}

/// Whoever does something.
pub struct Hand<'a> {
    /// Under which circumstances.
    pub setting: &'a Setting,
    /// To what.
    pub world: &'a mut World,
    /// For which coordinator.
    pub side: Side,
}

impl Hand<'_> {
    /// The coordinator.
    pub fn host(&mut self) -> &mut Host {
        match self.side {
            Side::Original => &mut self.world.host,
            Side::Copy => self.world.copy.as_mut().expect("only what there is does something"),
        }
    }
}
