"""S3 servers for tests, the demo and benchmarks. Knows S3 and nothing of lazyfs.

Three servers that speak the same protocol, so that one set of tests can be put through all of them:

- `fast`: our own, standard library only. As fast as the kernel's sendfile, keeps an exact log of requests,
  and can be late, slow or wrong on demand. A fake believes what its author believes, hence the other two.
- `swift`: OpenStack Swift with its s3api, out of wheels: a real server with real signatures, ranges and
  preconditions.
- `moto_server`: moto, for what neither of them has (checksums, GetObjectAttributes); with small objects only,
  since it reads the whole object for every range.

In front of each of them `proxy` lets requests through, or goes wrong on command.

`test_servers` holds them together: what `fast` answers there is what the real one answers. All of them bind
127.0.0.1 only, and every child process dies with the process that started it, however that one ends.

The modules below `fast`, from the bottom up: `records` (the log), `objects` (what is stored), `answers` and
`operations` (S3's rules, pure), `faults` (going wrong on purpose), `wire` and `sending` (HTTP over one
socket), `serving` (what `fast` and `proxy` have in common: connections, log, gates). `remote` is the fast
server as a process of its own; `processes` starts the children of all three, and `clients` makes the boto3
clients to reach them.
"""
