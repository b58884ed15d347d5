//! Agents with devices that only remember, reached as managers reach them.

mod bed;
mod bounds;
mod certificates;
mod leases;
mod routes;
