//! The book: its pages are run, and its reference is compared with a running server.

mod page;
mod pages;
mod reference;
mod run;
