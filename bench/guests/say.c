/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"
#include "io.h"

#include <stdarg.h>

#define COM1          0x3f8u
#define LINE_STATUS   (COM1 + 5)
#define TRANSMIT_FREE 0x20
#define POLLS_MAX     100000u /* a port that never gets free loses a character, not the guest */

static bool line_lock;
static bool last_said;

static void put(char c)
{
    for (unsigned i = 0; i < POLLS_MAX && !(inb(LINE_STATUS) & TRANSMIT_FREE); i++)
        cpu_relax();
    outb(COM1, (uint8_t)c);
}

static void put_number(uint64_t value, unsigned base)
{
    char digits[20];
    unsigned count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (count)
        put(digits[--count]);
}

static void put_line(const char *kind, const char *format, va_list arguments)
{
    while (*kind)
        put(*kind++);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
        } else if (format[1] == 's') {
            for (const char *text = va_arg(arguments, const char *); *text; text++)
                put(*text);
            format++;
        } else if (format[1] == 'l' && (format[2] == 'u' || format[2] == 'x')) {
            put_number(va_arg(arguments, uint64_t), format[2] == 'u' ? 10 : 16);
            format += 2;
        } else {
            put(*format);
        }
    }
    put('\n');
}

/* Interrupts stay off while the lock is held: the handler of a timer may want to speak too. */
static void speak(const char *kind, const char *format, va_list arguments, bool last)
{
    uint64_t flags;
    __asm__ volatile("pushfq; popq %0; cli" : "=r"(flags)::"memory");
    while (__atomic_test_and_set(&line_lock, __ATOMIC_ACQUIRE))
        cpu_relax();
    if (!last_said)
        put_line(kind, format, arguments);
    if (last)
        __atomic_store_n(&last_said, true, __ATOMIC_RELEASE);
    __atomic_clear(&line_lock, __ATOMIC_RELEASE);
    __asm__ volatile("pushq %0; popfq" ::"r"(flags) : "memory", "cc");
}

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    speak("", format, arguments, false);
    va_end(arguments);
}

bool said_last(void)
{
    return __atomic_load_n(&last_said, __ATOMIC_ACQUIRE);
}

static void stay(void) __attribute__((noreturn));
static void stay(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

void corrupt(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    speak("CORRUPT ", format, arguments, true);
    va_end(arguments);
    stay();
}

void fatal(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    speak("FATAL ", format, arguments, true);
    va_end(arguments);
    stay();
}
