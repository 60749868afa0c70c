//! The book: its pages are run, its reference is compared with a running server, and what it quotes
//! is there.

mod messages;
mod page;
mod pages;
mod reference;
mod run;
