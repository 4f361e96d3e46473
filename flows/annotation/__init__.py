"""What goes out to people and comes back: deliveries, leases, the door, quarantine, label providers."""
