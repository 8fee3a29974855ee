/* hold.exe FILE...: has the files open, as a program does that lets others read them and no more; says so on stdout, and
   ends with its stdin. */
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
