# SPDX-License-Identifier: BSD-3-Clause
"""Every reply must be what Redis 7.0 replies, byte for byte.

The same commands are sent to kvstore and to a redis-server. Left out is what cannot be the same: ids,
addresses, the order of KEYS, commands that only one of them has.
"""

import random
import subprocess
import unittest

import support

BINARY = bytes(range(256))
LONG = "x" * 200

COMMANDS = """
ping|ping hello|ping a b|PING|echo|echo hi|echo a b
nosuch|nosuch a|nosuch a b c|NOSUCH 'a'|get|get a b|set|set a|mget|mset|mset a|mset a 1 b|del|exists
get missing|set a 1|get a|set a 2 get|set b 3 get|get b|set a 5 nx|set a 5 xx|set c 5 xx|get c
set c 1 nx|get c|set c 1 nx xx|set c 1 foo|set c 1 ex|set c 1 ex abc|set c 1 ex 0|set c 1 ex -1
set c 1 ex 10 px 10|set c 1 keepttl ex 10|set c 1 ex 9223372036854775807|set c 1 px 9223372036854775807
set c 1 ex 1.5|set c 7 nx get|set nx1 7 nx get|get nx1|set nx1 8 xx get|get nx1|set nx9 8 xx get|get nx9
set t 1 ex 100|ttl t|set t 2 keepttl|ttl t|set t 3|ttl t|set t 4 px 100000|ttl t|persist t|ttl t|persist t
set t 1 exat 9999999999|set t 1 exat 0|set t 1 exat -5|set t 1 exat 99999999999999999|persist missing
set t 1 pxat 99999999999999|get t|set t 1 exat 1|get t|exists t|set t 1 get ex 10|set t 1 ex 10 get get
ttl missing|pttl missing|ttl a|pttl a|ttl|ttl a b
expire missing 10|expire a 10|ttl a|expire a 0|get a|set a 1|expire a -1|get a|set a 1|expire a abc
expire a 9223372036854775807|expire a -9223372036854775808|expire a 10 nx|expire a 20 nx|ttl a|expire a 20 gt
ttl a|expire a 10 gt|ttl a|expire a 5 lt|ttl a|expire a 50 xx|ttl a|expire a 5 nx xx|expire a 5 gt lt
expire a 5 foo|expire a 5 nx nx|expire a 5 xx gt|ttl a|persist a|expire a 100 gt|expire a 100 lt|ttl a
expire a 5 nx gt|expire missing abc|expire a 10 GT LT NX|pexpire a 100000|ttl a|pexpire a|pexpire a x
pexpire a 9223372036854775807|expire a 9223372036854775|pexpire a -1|get a
set n 10|incr n|incrby n 5|decr n|decrby n 3|get n|strlen n|incrby n abc|incrby n 1.5|incr missing1|decr missing2
get missing2|set n abc|incr n|set n 9223372036854775807|incr n|decr n|incr n|get n|set n -9223372036854775808
decr n|get n|strlen n|decrby n -9223372036854775808|incrby n 9223372036854775807|get n|decrby n 9223372036854775807
set n " 1"|incr n|set n "1 "|incr n|set n 01|incr n|get n|set n +1|incr n|set n -0|incr n|set n 0|incr n|set n ""
incr n|strlen n|get n|set n 12345678901234567890|incr n|get n|set n 9223372036854775808|get n|incr n|set n -1|get n
incrby n 9223372036854775808|incrby n|incr|incr a b|set n 1e3|incr n|decrby n " 1"|set n 10 ex 100|incr n|ttl n
append ap hello|append ap " world"|get ap|strlen ap|set ap 1|append ap 2|get ap|incr ap|get ap|append ap ""
append ap x|incr ap|get ap|append ap2 ""|get ap2|exists ap2|strlen ap2|append|append a|append e 5|incr e|get e
set ap 1 ex 100|append ap 1|ttl ap|strlen missing|strlen|strlen a b
mset a 1 b 2 c 3|mget a b c missing|mget missing|mset a 1 a 2 a 3|get a|mset a 1 b 2 c 3 d 4 e 5 f 6 g 7 h 8 i 9 j 10
mget a b c d e f g h i j|dbsize|del a|del a|del a b c nope|exists a b d d d nope|dbsize|del d d e e f
exists d e f g h i j|keys g|keys nope*|keys [gh]|keys ?|del g h i j a b c d e f k l m n|dbsize
keys|keys a b|scan|scan abc|scan 0 foo|scan 0 count|scan 0 count 0|scan 0 count abc|scan 0 match
scan 0 count -5|scan 99999999999999999999|scan 18446744073709551616|scan 0 type hash
select 0|select|select abc|select -1|select 99|select 0 1|select 9223372036854775808
flushall|dbsize|keys *|flushdb|flushall sync|flushall async|flushall foo|flushall sync async|flushdb async
scan 0|scan 0 match *|scan 0 count 100|exists a
client|client foo|client id x|client getname|client setname conn|client getname|client setname "a b"
client setname ""|client getname|client getname x|client setname|client reply foo|client reply on|client reply
client kill|client kill 1.2.3.4:5|client kill id|client kill id abc|client kill id 0|client kill id 99999
client kill foo bar|client no-evict|client no-evict on
config|config get|config get nosuch|config get appendonly|config get maxmemory-policy|config get save
config get proto-max-bulk-len|config set|config set foo|config set foo bar|config foo|config resetstat
config get APPENDONLY|config rewrite|config resetstat x
command foo|command getkeys|command getkeys get|command getkeys get a|command getkeys mset a 1 b 2
command getkeys ping|command getkeys foo|command info nosuch|command docs nosuch
hello|hello 1|hello 4|hello abc|hello 2 foo|hello 2 setname|hello 2 setname "a b"|hello 2 auth a|hello 3.0
object|shutdown abort|shutdown foo|shutdown nosave save foo
debug nosuch|quit x
"""


def parse(word_list):
    """Commands, separated by | and line ends; words by blanks, with double quotes around some."""
    for line in word_list.strip().split("\n"):
        for command in line.split("|"):
            words, rest = [], command.strip()
            while rest:
                if rest[0] == '"':
                    word, rest = rest[1:].split('"', 1)
                else:
                    word, _, rest = rest.partition(" ")
                words.append(word)
                rest = rest.lstrip()
            yield words


# Replies that say who one is.
DIFFERENT = {("hello",), ("quit", "x"), ("debug", "nosuch"), ("object",)}


class Pair(support.TestCase):
    """A kvstore and a redis-server."""

    late = 2  # seconds that one of them may be behind the other

    def setUp(self):
        super().setUp()
        self.ours = self.server().start()
        self.redis_port = support.free_port()
        self.redis = subprocess.Popen(
            [support.program("redis-server"), "--port", str(self.redis_port), "--save", "",
             "--appendonly", "no", "--databases", "1", "--dir", self.directory,
             "--daemonize", "no", "--enable-debug-command", "no"],
            stdout=subprocess.DEVNULL)
        self.addCleanup(self.redis.wait)
        self.addCleanup(self.redis.terminate)
        self.wait_until("redis-server answers", self.redis_answers)

    def redis_answers(self):
        try:
            support.Client(("127.0.0.1", self.redis_port)).close()
            return True
        except OSError:
            return False

    def clients(self):
        pair = self.ours.client(), support.Client(("127.0.0.1", self.redis_port))
        for client in pair:
            self.addCleanup(client.close)
        return pair

    def same(self, *command):
        ours, theirs = self.a.raw(*command), self.b.raw(*command)
        if command[0].upper() == "KEYS" and ours[:1] == theirs[:1] == b"*":
            ours, theirs = (sorted(reply.split(b"\r\n")) for reply in (ours, theirs))
        # One of the two may have been kept waiting by the machine since the time was set.
        if command[0].upper() == "TTL" and ours[:1] == theirs[:1] == b":":
            left = [int(reply[1:]) for reply in (ours, theirs)]
            if min(left) > 0 and abs(left[0] - left[1]) <= self.late:
                return
        self.assertEqual(ours, theirs, f"{command!r}: kvstore, then redis")


class Replies(Pair):
    def run_all(self, protocol):
        self.a, self.b = self.clients()
        for client in self.a, self.b:
            client("HELLO", protocol)
        for words in parse(COMMANDS):
            if tuple(words) in DIFFERENT:
                continue
            with self.subTest(words):
                self.same(*words)

    def test_resp2(self):
        self.run_all(2)

    def test_resp3(self):
        self.run_all(3)

    def test_bytes(self):
        self.a, self.b = self.clients()
        self.same("SET", BINARY, BINARY)
        self.same("GET", BINARY)
        self.same("KEYS", "*")
        self.same("SET", "", "empty key")
        self.same("GET", "")
        self.same(BINARY, "a")
        self.same("a\r\nb", "c\r\nd")
        self.same(LONG, LONG, LONG)
        self.same("nosuch", *["word%d" % i for i in range(40)])
        self.same("CLIENT", BINARY)
        self.same("CONFIG", LONG)
        self.same("EXPIRE", "k", "1", LONG)

    def test_sequences(self):
        """A long random conversation over few keys: what a key went through must not show."""
        self.a, self.b = self.clients()
        rnd = random.Random(7)
        keys = ["k%d" % i for i in range(12)]
        numbers = ["0", "1", "-1", "10", "9223372036854775807", "-9223372036854775808", "007",
                   "1.5", "x", "", "12345678901234567890"]

        def value():
            return rnd.choice(numbers + ["v" * rnd.randrange(300), str(rnd.randrange(10 ** 9))])

        def key():
            return rnd.choice(keys)

        # No two times are the same or near each other: which of two is later does not depend on the
        # millisecond in which a server got them.
        times = [str(200 * n) for n in range(1, 6001)]
        rnd.shuffle(times)
        self.late = 100

        for _ in range(6000):
            command = rnd.choice([
                lambda: ("SET", key(), value()),
                lambda: ("SET", key(), value(), rnd.choice(["NX", "XX", "GET", "KEEPTTL"])),
                lambda: ("SET", key(), value(), "EX", times.pop()),
                lambda: ("GET", key()), lambda: ("STRLEN", key()),
                lambda: ("APPEND", key(), value()),
                lambda: ("INCR", key()), lambda: ("DECRBY", key(), value()),
                lambda: ("INCRBY", key(), rnd.choice(numbers)),
                lambda: ("MSET", *[x for _ in range(rnd.randrange(1, 25))
                                   for x in (key(), value())]),
                lambda: ("MGET", *[key() for _ in range(rnd.randrange(1, 20))]),
                lambda: ("DEL", *[key() for _ in range(rnd.choice([1, 1, 3, 12]))]),
                lambda: ("EXISTS", key(), key()),
                lambda: ("EXPIRE", key(), rnd.choice([times.pop(), times.pop(), "0", "-1"]),
                         *rnd.choice([(), ("NX",), ("XX",), ("GT",), ("LT",)])),
                lambda: ("TTL", key()), lambda: ("PERSIST", key()), lambda: ("DBSIZE",),
            ])()
            if rnd.random() < 0.002:
                command = ("FLUSHALL",)
            self.same(*command)

    def test_globs(self):
        self.a, self.b = self.clients()
        rnd = random.Random(3)
        letters = "abc-]^["
        for n in range(120):
            self.same("SET", "".join(rnd.choice(letters) for _ in range(n % 5 + 1)), "1")
        for _ in range(1500):
            pattern = "".join(rnd.choice(letters + "**??[[]]\\") for _ in range(rnd.randrange(9)))
            with self.subTest(pattern):
                replies = [sorted(c("KEYS", pattern)) for c in (self.a, self.b)]
                self.assertEqual(*replies)

    def test_integers_in_lengths(self):
        """Numbers in the protocol itself: what is malformed closes the connection with an error."""
        for text in (b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$x\r\n", b"*1\r\n$-1\r\n", b"*1\r\n$ 4\r\nPING\r\n",
                     b"*1\r\n$04\r\nPING\r\n", b"*01\r\n$4\r\nPING\r\n", b"*x\r\n",
                     b"*2147483648\r\n", b"*1\r\nPING\r\n", b"*1\r\n:4\r\n", b"*1\r\n$536870913\r\n",
                     b"*1\r\n$99999999999999999999\r\n", b"*" + b"1" * 70000,
                     b"*1\r\n$" + b"1" * 70000, b"x" * 70000, b'set "a\r\n', b"set 'a\r\n",
                     b'set "a"b c\r\n', b"*1\r\n+PING\r\n", b"*1\r\n\xff\r\n"):
            with self.subTest(text[:40]):
                replies = []
                for client in self.clients():
                    client.send(text)
                    replies.append(client.closed_by_server())
                self.assertEqual(*replies)
                self.assertTrue(replies[0].startswith(b"-ERR Protocol error"))

    def test_what_is_not_an_error(self):
        for text in (b"*0\r\nPING\r\n", b"*-1\r\nPING\r\n", b"*-10\r\nPING\r\n", b"\r\n\r\nPING\r\n",
                     b"   PING  \r\n", b"PING\n", b'SET "a\\x41\\n" "\\"q\\""\r\n',
                     b"GET 'a b'\r\n", b"SET k 'it\\'s'\r\n", b"GET k\r\n", b'ECHO "a b"\r\n',
                     b"*1\r\n$4\r\nPINGxx", b"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n", b'ECHO ""\r\n',
                     b"ECHO a\\n\r\n", b"PING\r\r\n", b"ECHO \xff\xfe\r\n"):
            with self.subTest(text):
                replies = []
                for client in self.clients():
                    client.send(text)
                    replies.append(client.raw_reply())
                self.assertEqual(*replies)


if __name__ == "__main__":
    unittest.main()
