"""Rules for the test world that between them use all of the language, for fuzzers and differential tests.

The first lets through what fuzz_frame.c opens its world with. Limits are low, so that a few packets reach them.
"""

from __future__ import annotations

EVERYTHING = """\
group tier = web, odd
group all = tier, db
set office = 192.0.2.0/28, 2001:db8::/32
set far = 198.51.100.0/24, office
set six = 2001:db8:1::/48
allow any -> internet limit 1/s
allow any -> office
allow lan -> any tcp 22 limit 1/s log
allow office -> tier udp 1-1023
allow dom0 -> any
allow tier -> db tcp 5432,80 log
allow web -> db icmp echo
allow db <-> web proto gre limit 1/s
allow web -> db ether 0x889a,0x88a2
allow all -> dom0 ether 0x88cc
deny odd -> far udp
deny web -> six
reject db -> 192.0.2.12 tcp 25-80
reject all -> dom0 icmp
deny any -> any proto sctp
"""
OPEN = """\
group all = web, db, odd, dom0
allow any -> any
allow lan -> any
allow all <-> all ether 0x889a,0x88cc
deny db -> web ether 0x88cc
allow any -> any icmp timestamp limit 3/s
"""
NARROW = """\
group tier = web, db
set office = 192.0.2.11-192.0.2.12
set partners =
allow web -> office tcp 80 limit 1/s
allow web -> 198.51.100.9 icmp timestamp
allow tier <-> tier udp limit 1/s log
allow tier <-> odd proto 132
allow partners -> any
allow office -> web
deny odd -> lan
reject odd -> any tcp
allow tier -> tier ether 0x889a
"""
LEVELS = """\
group tier = web, db
allow web -> 192.0.2.11
deny web -> lan udp 53
reject tier -> local-office icmp echo
allow tier -> lan
allow any -> internet tcp log
deny tier -> 198.51.100.9 tcp 443,2202
set local-office = 192.0.2.8/29
allow lan -> tier tcp limit 1/s
deny 192.0.2.12 -> any tcp 22
allow db -> any limit 1/s
deny db -> web tcp 1-1023
reject any -> web udp
allow odd -> tier proto esp
"""
NOTHING = ""
ALL = (EVERYTHING, OPEN, NARROW, LEVELS, NOTHING)
