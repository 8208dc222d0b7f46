//! Every test that needs the outside world: disks, processes, brokers.

mod store_contract;
mod store_faults;
