/*
 * Preloaded into user-mode Linux, which keeps 2696 bytes of each thread's extended registers: enough up to AVX-512.
 * A host whose registers take more (AMX does) gives that much, but sets nothing less than the whole (EFAULT), and the
 * guest's first process dies. The rest belongs to features that no guest may use, and is zero in their initial state.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define XSTATE 0x202 /* NT_X86_XSTATE */

static unsigned char whole[65536];
static size_t host_size;

static long set_whole(long pid, const struct iovec *part)
{
	struct iovec all = { whole, sizeof whole };

	if (!host_size) {
		if (syscall(SYS_ptrace, PTRACE_GETREGSET, pid, XSTATE, &all) < 0)
			return -1;
		host_size = all.iov_len;
		memset(whole, 0, sizeof whole);
	}
	if (part->iov_len >= host_size)
		return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, XSTATE, part);
	memcpy(whole, part->iov_base, part->iov_len);
	all.iov_len = host_size;
	return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, XSTATE, &all);
}

/* Stands before the C library's. */
long ptrace(enum __ptrace_request request, ...)
{
	va_list arguments;
	va_start(arguments, request);
	long pid = va_arg(arguments, int);
	long address = va_arg(arguments, long);
	void *data = va_arg(arguments, void *);
	va_end(arguments);

	if (request == PTRACE_SETREGSET && address == XSTATE)
		return set_whole(pid, data);
	/* The system call stores what it peeks at; the C library returns it. */
	long word = 0;
	int peeks = request >= PTRACE_PEEKTEXT && request <= PTRACE_PEEKUSER;
	long result = syscall(SYS_ptrace, request, pid, address, peeks ? &word : data);
	if (peeks && result >= 0) {
		errno = 0;
		return word;
	}
	return result;
}
