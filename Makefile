# SPDX-License-Identifier: Apache-2.0
# A thin front: meson does the building, tools/ the rest.
BUILD ?= build

.PHONY: help build check demo install format clean dependencies

help:
	@echo "make demo     protect a Linux guest, kill its host, watch the standby take over (root)"
	@echo "              DEMO=--help names what can be chosen"
	@echo "make check    build and run every test (root)"
	@echo "make build    build into $(BUILD)/"
	@echo "make install  install program, manual pages and systemd units (DESTDIR, PREFIX)"
	@echo "make format   format the sources"
	@echo "make clean    remove $(BUILD)/ and what check built beside it"

dependencies:
	@tools/install-dependencies.sh

$(BUILD)/build.ninja: | dependencies
	@meson setup $(BUILD) $(if $(PREFIX),--prefix=$(PREFIX))

build: dependencies $(BUILD)/build.ninja
	@ninja -C $(BUILD)

check:
	@tools/install-dependencies.sh check
	@tools/check.py --build $(BUILD)

demo: build
	@tools/demo.py --build $(BUILD) $(DEMO)

install: build
	@DESTDIR=$(DESTDIR) meson install -C $(BUILD) --no-rebuild

format:
	@git ls-files '*.c' '*.h' | xargs clang-format -i

clean:
	@rm -rf $(BUILD) $(BUILD)-*
