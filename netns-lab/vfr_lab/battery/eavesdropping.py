"""To receive what is for others: promiscuous, by flooding the switch's table, by multicast and broadcast."""
