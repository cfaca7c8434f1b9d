/* Holds a Pod's namespaces: waits for the end, and as process 1 buries the orphans. */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int signal_number) {
    (void)signal_number;
    _exit(0);
}

static void bury(int signal_number) {
    (void)signal_number;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        continue;
}

int main(void) {
    struct sigaction on_end = {.sa_handler = end}, on_child = {.sa_handler = bury, .sa_flags = SA_NOCLDSTOP};

    if (sigaction(SIGINT, &on_end, NULL) || sigaction(SIGTERM, &on_end, NULL) || sigaction(SIGCHLD, &on_child, NULL))
        return EXIT_FAILURE;
    for (;;)
        pause();
}
