//! The model, checked.

#![allow(missing_docs, reason = "a test's name is its documentation")]

mod rules;
mod small;
