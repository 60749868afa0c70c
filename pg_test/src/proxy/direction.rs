//! The two threads of a connection through the proxy: one passes requests on, one answers.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;

use super::{Effect, Point, Shared};
use crate::hostile::Stream;
use crate::wire::{Conversation, Framer};

/// What the two threads of a connection share.
pub(super) struct Direction {
    pub(super) shared: Arc<Shared>,
    pub(super) conversation: Arc<Mutex<Conversation>>,
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
}

impl Direction {
    fn conversation(&self) -> MutexGuard<'_, Conversation> {
        self.conversation.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What fault `id` does to this connection, before the test knows that it struck.
    fn strike(&self, id: u64, statement: &str, effect: Effect) {
        self.shared.strike(id, statement, effect, || cut(&self.client, &self.server));
    }

    /// Client to server, until either is gone or a fault cuts.
    pub(super) fn pass_requests(&self) -> Result<()> {
        let mut framer = Framer::of_client();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = (&self.client).read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            framer.push(&buffer[..count]);
            while let Some(mut message) = framer.next_message()? {
                if message.asks_for_encryption() {
                    // What passes must stay readable: no, in the name of the server.
                    (&self.client).write_all(b"N")?;
                    continue;
                }
                let statement = self.conversation().sent(&message);
                if let Some(statement) = statement
                    && let Some((id, fault)) = self.shared.fault_for(&statement)
                {
                    match fault.point {
                        Point::Answer => self.conversation().watch_last(id),
                        Point::Statement if fault.effect == Effect::Cut => {
                            self.strike(id, &statement, fault.effect);
                            return Ok(());
                        }
                        Point::Statement => self.strike(id, &statement, fault.effect),
                    }
                }
                let reworded = self.shared.lock().reworded;
                if let Some([from, to]) = reworded {
                    message.replace(from.as_bytes(), to.as_bytes());
                }
                (&self.server).write_all(&message.bytes)?;
            }
        }
    }

    /// Server to client, until the server is gone or a fault cuts. A client that is gone does not
    /// end it: what the server says is then read and dropped, so that it can finish what it does.
    pub(super) fn pass_answers(&self) -> Result<()> {
        let mut framer = Framer::of_server();
        let mut stream = Stream::default();
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = (&self.server).read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            framer.push(&buffer[..count]);
            while let Some(mut message) = framer.next_message()? {
                let watcher = self.conversation().received(&message);
                if let Some(id) = watcher {
                    let fault = self.shared.lock().faults.get(&id).map(|armed| armed.fault.clone());
                    if let Some(fault) = fault {
                        self.strike(id, &fault.prefix, fault.effect);
                        match fault.effect {
                            Effect::Cut => return Ok(()),
                            Effect::Hold => {}
                            Effect::Replace => message.bytes = fault.instead,
                        }
                    }
                }
                let said = stream.pass(&message, self.shared.lock().hostile.as_mut());
                let _ = (&self.client).write_all(&said.bytes);
                if said.closes {
                    return Ok(());
                }
            }
        }
    }
}

/// Ends both halves of a connection. What was written before still arrives.
pub(super) fn cut(client: &TcpStream, server: &TcpStream) {
    let _ = client.shutdown(Shutdown::Both);
    let _ = server.shutdown(Shutdown::Both);
}
