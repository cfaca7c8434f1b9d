<?php
// Prints a wp-config.php: settings from the environment at every request, salts drawn now, once for all replicas.
$salts = [];
foreach (['AUTH', 'SECURE_AUTH', 'LOGGED_IN', 'NONCE'] as $name) {
    foreach (["{$name}_KEY", "{$name}_SALT"] as $key) {
        $salts[] = sprintf("define('%s', setting('%s', '%s'));", $key, $key, bin2hex(random_bytes(32)));
    }
}
echo <<<'HEAD'
<?php
function setting(string $name, string $default): string
{
    $file = getenv("WORDPRESS_{$name}_FILE");
    if ($file !== false && $file !== '') {
        return rtrim(file_get_contents($file), "\r\n");
    }
    $value = getenv("WORDPRESS_$name");
    return $value === false ? $default : $value;
}

define('DB_NAME', setting('DB_NAME', 'wordpress'));
define('DB_USER', setting('DB_USER', 'example username'));
define('DB_PASSWORD', setting('DB_PASSWORD', 'example password'));
define('DB_HOST', setting('DB_HOST', 'mysql'));
define('DB_CHARSET', setting('DB_CHARSET', 'utf8mb4'));
define('DB_COLLATE', setting('DB_COLLATE', ''));
$table_prefix = setting('TABLE_PREFIX', 'wp_');
define('WP_DEBUG', (bool) setting('DEBUG', ''));

HEAD;
echo "\n", implode("\n", $salts), "\n";
echo <<<'TAIL'

// Behind a proxy that ends TLS, as upstream's image has it.
if (str_contains($_SERVER['HTTP_X_FORWARDED_PROTO'] ?? '', 'https')) {
    $_SERVER['HTTPS'] = 'on';
}
if ($extra = setting('CONFIG_EXTRA', '')) {
    eval($extra);
}
if (!defined('ABSPATH')) {
    define('ABSPATH', __DIR__ . '/');
}
require_once ABSPATH . 'wp-settings.php';

TAIL;
