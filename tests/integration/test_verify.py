# SPDX-License-Identifier: Apache-2.0
"""`understudy verify`: finds nothing where nothing is wrong, and exactly what is wrong where something is."""
from understudy_test import PAGES, check


def ram_mapping(pid, size):
    """Address of the guest's main memory in a QEMU: the one writable mapping of that size."""
    with open(f"/proc/{pid}/maps") as maps:
        for line in maps:
            bounds, rights = line.split()[:2]
            first, last = (int(word, 16) for word in bounds.split("-"))
            if last - first == size and rights.startswith("rw"):
                return first
    raise AssertionError(f"process {pid} has no writable mapping of {size} bytes")


def test_equal(run):
    pair = run.pair(load=PAGES).up()
    pair.wait_epochs(5)
    found = pair.verify()
    check(found["differing"] == 0, f"memory differs: {found}", pair.story)
    check(found["equal"] and found["pages"] >= (pair.memory << 20) // 4096, f"not all was compared: {found}")
    names = {block["name"] for block in found["blocks"]}
    check("pc.ram" in names and len(names) > 1, f"not all RAM blocks were compared: {names}")
    out, _, _ = run.us("verify", pair.config("alpha"), "--host", "alpha", seconds=90)
    check(out.strip(), "verify said nothing")


def test_planted_difference(run):
    """A page spoilt behind everybody's back on the standby is found and named, and exit code is 5."""
    pair = run.pair().up()
    pair.wait_epochs(5)
    pid = pair.status("beta")["guest"]["pid"]
    base = ram_mapping(pid, pair.memory << 20)
    planted = []
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        # Pages that nobody uses: zero on both sides, in the upper part of the memory, far from the guest's own.
        page = (pair.memory << 20) // 4096 * 3 // 4
        while len(planted) < 3 and page < (pair.memory << 20) // 4096:
            memory.seek(base + page * 4096)
            if memory.read(4096) == bytes(4096):
                memory.seek(base + page * 4096 + 100)
                memory.write(b"spoilt")
                planted.append(page)
                page += 50
            page += 1
    check(len(planted) == 3, "found no unused pages to spoil")
    found = pair.verify(expect=5)
    check(found["differing"] >= 1, f"nothing found: {found}", pair.story)
    listed = {(block["name"], page) for block in found["blocks"] for page in block["differing_pages"]}
    # The guest may have written one of them meanwhile, which mends it; nothing else may differ.
    check(listed and listed <= {("pc.ram", page) for page in planted},
          f"planted {planted}, listed {sorted(listed)[:20]}", pair.story)
    check(not found["equal"], f"equal, and yet: {found}")
