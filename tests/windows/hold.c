/* hold.exe FILE...: opens the files, sharing them for reading only, prints "held", and exits at the end of stdin. */
#include <stdio.h>
#include <windows.h>

int wmain(int count, wchar_t **arguments) {
    for (int i = 1; i < count; i++) {
        HANDLE file = CreateFileW(arguments[i], GENERIC_READ, FILE_SHARE_READ, NULL, OPEN_EXISTING, 0, NULL);
        if (file == INVALID_HANDLE_VALUE) {
            fprintf(stderr, "cannot open %ls: error %lu\n", arguments[i], GetLastError());
            return 1;
        }
    }
    puts("held");
    fflush(stdout);
    while (getchar() != EOF) {
    }
    return 0;
}
